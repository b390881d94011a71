from __future__ import annotations

import json
import platform

import torch

import halfbyte
from halfbyte.environment import environment


def test_environment_names_versions_and_machine() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["versions"]["halfbyte"] == halfbyte.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_bytes"] is None or found["machine"]["memory_bytes"] > 2**28
    assert found["machine"]["processor"]
