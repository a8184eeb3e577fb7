"""Paths narrower than their ends: one router in the middle, for all combinations of the pair."""


import pytest
from traffic import download, large_file

from lab.topology import PAIRS, Lab

KINDS = sorted(PAIRS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrow_link_behind_the_router_in_the_middle_makes_itself_known(kind: str) -> None:
    """The router that tells of its narrow link is the backends' as well: an error that goes on with
    its own address as source comes back to it, and is dropped there as a martian."""
    with Lab(backends=1, hub=True, path_mtu=1300, pair=kind) as lab:
        lab.start_all()
        expected = large_file(lab, 2_000_000)

        assert download(lab, timeout_s=20) == expected
