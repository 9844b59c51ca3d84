"""A short run of experiments/fuzz_serve.py."""

import importlib.util

from tests.conftest import ROOT


def test_mutated_requests_cause_no_server_error():
    spec = importlib.util.spec_from_file_location("fuzz_serve", ROOT / "experiments" / "fuzz_serve.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    found = program.fuzz(400, seed=1)
    assert not found["failed"]
    assert found["valid"] > 40
    assert found["http"][400] > 50
    assert found["grpc"]["INVALID_ARGUMENT"] > 50
