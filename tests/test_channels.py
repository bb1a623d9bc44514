"""What a channel's name says of its intensities, as nnU-Net v2 takes it."""

import pytest

from flaresemi.channels import is_ct, meant_scheme, scheme_of


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"),
        (" ct ", "ct"),
        ("noNorm", "none"),
        ("nonorm", "none"),
        ("zscore", "zscore"),
        ("rescale_to_0_1", "rescale_to_0_1"),
        ("rescale_0_1", "rescale_to_0_1"),
        ("RGB_to_0_1", "rgb_to_0_1"),
        ("T1", "zscore"),
        ("no norm", "zscore"),
        ("CT_portal", "zscore"),
    ],
)
def test_a_name_asks_for_a_scheme(name: str, scheme: str) -> None:
    assert scheme_of(name) == scheme
    assert is_ct(name) == (scheme == "ct")


def test_a_name_that_differs_in_its_separators_is_told() -> None:
    told = {"no_norm": "noNorm", "rescale to 0-1": "rescale_to_0_1", "z-score": "zscore", "noNorm": None, "T1": None}
    assert {name: meant_scheme(name) for name in told} == told
