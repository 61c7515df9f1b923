"""The main job: put everything known about one answer side by side, and write it as a page."""

from cutaway.explain.explain import Explanation, anchors_of, explain, report_of
from cutaway.explain.report import Conclusion, conclude, report_html

__all__ = ["Conclusion", "Explanation", "anchors_of", "conclude", "explain", "report_html", "report_of"]
