"""The web app: runs to browse, a playground, and a steered or monitored model behind the OpenAI protocol."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.app.create import create_app, serve
    from cutaway.app.guard import Access, access
    from cutaway.app.pages import Pages

__all__ = ["Access", "Pages", "access", "create_app", "serve"]

# Without the web packages, `cutaway serve` says which to install.
__getattr__ = on_demand(__name__)
