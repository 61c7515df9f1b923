"""The web app: runs to browse, a playground, and a steered or monitored model behind the OpenAI protocol."""

from cutaway.app.create import create_app, serve
from cutaway.app.guard import Access, access
from cutaway.app.pages import Pages

__all__ = ["Access", "Pages", "access", "create_app", "serve"]
