"""Which timm models can be searched, and where their blocks are. One file per model family."""

from spvit_deploy.families.base import BlockSite, Family, Refusal
from spvit_deploy.families.parts import standard_site
from spvit_deploy.families.registry import find_family, find_sites, inspect_family

__all__ = [
    "BlockSite", "Family", "Refusal", "find_family", "find_sites", "inspect_family",
    "standard_site",
]  # fmt: skip
