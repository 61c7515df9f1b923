"""Write the table of systems into README.md from the studies themselves."""

import re
from pathlib import Path

from cutaway.study import paper_table, studies

README = Path(__file__).parents[1] / "README.md"
text = README.read_text(encoding="utf-8")
table = f"<!-- systems -->\n{paper_table(studies().values())}<!-- /systems -->"
README.write_text(re.sub(r"<!-- systems -->.*<!-- /systems -->", lambda _: table, text, flags=re.S), encoding="utf-8")
