"""The rules by which drafts above temperature 0 are accepted, by name.

Both keep the target's distribution, and at temperature 0 they are one and the same.
"""

from __future__ import annotations

from dspark.errors import ConfigError

TOKEN = "token"  # each token on its own (Leviathan et al. 2023)
BLOCK = "block"  # the draft as a whole (arXiv 2403.10444)
RULES = (TOKEN, BLOCK)
DEFAULT_RULE = BLOCK


def check_rule(name: str) -> str:
    """The name of a rule.

    Raises:
        ConfigError: there is no such rule.
    """
    if name not in RULES:
        raise ConfigError("Unknown verification", found=name, fix=f"Use {' or '.join(RULES)}")
    return name
