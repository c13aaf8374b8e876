"""The page docs/canary.md, its commands in their order against a running server."""

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

from tests.support.server import ROOT, running_server, wait_until

COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs/canary.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_promotion_and_a_roll_back_go_as_the_page_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models/mnist", tmp_path / "mnist")
    port = free_port()
    flags = ("--port", "0", "--repository", str(tmp_path), "--control.mode", "explicit", "--admin.port", str(port))
    with running_server(*flags) as server:
        said = []
        for command in COMMANDS:
            here = command.replace("http://localhost:8000", server.url).replace("localhost:8001", f"127.0.0.1:{port}")
            here = here.replace("curl ", "curl --silent --fail-with-body ")
            done = subprocess.run(["bash", "-c", here], cwd=ROOT, capture_output=True, timeout=60)
            assert done.returncode == 0, (command, done.stdout)
            said.append((command, json.loads(done.stdout)))
            if "/predict/" in command and "shadow" in COMMANDS[len(said) - 2]:
                wait_until(lambda: server.metrics()["shoal_shadow_items_total", "mnist"] == 1, "the shadow's answer")
    answers = [answer["version"] for command, answer in said if "/predict/" in command]
    assert answers[:2] == ["3", "2"]
    assert answers[2] in ("2", "3")
    (routing,) = [answer["routing"] for command, answer in said if command.endswith("admin/models/mnist")]
    assert routing["split"] == {}
    promoted = said[-1][1]
    assert promoted["routing"]["aliases"] == {"stable": "3"}
    assert {each["version"]: each["state"] for each in promoted["versions"]}["3"] == "READY"
