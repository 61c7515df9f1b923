"""The main job: put everything known about one answer side by side, and write it as a page."""

from cutaway.explain.circuit_page import circuit_page
from cutaway.explain.explain import Explanation, anchors_of, explain, report_of, report_of_run
from cutaway.explain.report import Conclusion, conclude, report_html
from cutaway.explain.run_page import calibration_page, run_page
from cutaway.explain.trace_page import trace_page
from cutaway.reasoning.thought_anchors.result import anchors_view

__all__ = [
    "Conclusion",
    "Explanation",
    "anchors_of",
    "anchors_view",
    "calibration_page",
    "circuit_page",
    "conclude",
    "explain",
    "report_html",
    "report_of",
    "report_of_run",
    "run_page",
    "trace_page",
]
