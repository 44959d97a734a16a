"""Visitor: what a request says of fields that are not there."""

import pytest

from adrec.errors import RequestError
from adrec.features.dataset import Dataset
from adrec.features.visitor import require_known


def test_a_field_that_is_not_there_is_named_beside_those_that_are(tiny_dataset: Dataset) -> None:
    encoders = tiny_dataset.features.request.encoders
    require_known({}, encoders, "context")
    require_known({"device": "mobile"}, encoders, "context")
    with pytest.raises(RequestError, match=r"context: no field called plaice, width; .*device"):
        require_known({"width": 1, "device": "mobile", "plaice": 2}, encoders, "context")
