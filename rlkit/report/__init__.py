"""One self-contained page about a run: `report.html` needs no network, no server and no rlkit to be read.

`numbers` and `rollouts` decide what is said (which numbers, which trees, what is missing); `assets/` decides
how it looks. Rollout text is untrusted: it travels as JSON without `<`, is shown through `textContent` only,
and the page's content security policy runs no script but its own.
"""

from rlkit.report.page import write_report

__all__ = ["write_report"]
