"""One trace on one page: its curve, its graph and what every method says, lined up sentence by sentence."""

from collections.abc import Sequence

from cutaway.charts import Chart, Heat
from cutaway.explain.figures import figure
from cutaway.explain.findings import finding_rows
from cutaway.explain.page import VIEWER_SCRIPTS, VIEWER_STYLES, embedded, render
from cutaway.explain.views import viewer_data
from cutaway.reasoning.view import TraceView
from cutaway.study import Finding


def trace_page(view: TraceView, charts: Sequence[Chart | Heat] = (), findings: Sequence[Finding] = ()) -> str:
    """Return the viewer of one trace as one HTML document; charts and findings stand below it when given."""
    return render(
        "trace_page.html.j2",
        scripts=[VIEWER_SCRIPTS],
        styles=VIEWER_STYLES,
        title=view.title,
        view=view,
        view_data=embedded(viewer_data(view)),
        charts=[figure(chart, i) for i, chart in enumerate(charts)],
        findings=finding_rows(findings),
    )
