"""What is said of a machine, whatever it is."""

import pytest

from cli.diagnosis import machine
from cli.diagnosis.checks import Verdict


@pytest.mark.parametrize(
    ("release", "verdict", "text"),
    [
        ("6.1.0-30-amd64", Verdict.NOTE, "does not pass files through"),
        ("6.8.12", Verdict.NOTE, "does not pass files through"),
        ("6.9.0", Verdict.OK, "6.16 and later also keep names"),
        ("6.12.48+deb13-amd64", Verdict.OK, "6.16 and later also keep names"),
        ("6.18.44-fc-v657", Verdict.OK, "and keeps names"),
        ("7.0", Verdict.OK, "and keeps names"),
    ],
)
def test_the_kernel(release: str, verdict: Verdict, text: str) -> None:
    check = machine.judge_kernel(release)
    assert check.verdict is verdict
    assert f"Linux {release}" in check.text
    assert text in check.text


def test_what_mounting_needs() -> None:
    assert machine.judge_device("", is_root=False).verdict is Verdict.OK
    assert machine.judge_device("/dev/fuse: Permission denied", is_root=False).verdict is Verdict.NOTE
    missing = machine.judge_device("/dev/fuse: No such file or directory", is_root=True)
    assert (missing.verdict, "No such file" in missing.text) == (Verdict.FAILURE, True)
    assert machine.judge_fuse("3.5.0", "3.14.0").text == "pyfuse3 3.5.0, libfuse 3.14.0"
    for versions, lacking in (
        (("", "3.14.0"), "pyfuse3"),
        (("3.5.0", ""), "libfuse3.so.3"),
        (("", ""), "pyfuse3 and libfuse3.so.3"),
    ):
        check = machine.judge_fuse(*versions)
        assert (check.verdict, check.text.startswith(f"{lacking} cannot be loaded")) == (Verdict.FAILURE, True)


def test_the_extension() -> None:
    assert machine.judge_extension("").verdict is Verdict.OK
    check = machine.judge_extension("No module named 'fusefs.kernel._channel'")
    assert check.verdict is Verdict.WARNING
    assert "No module named" in check.text
    assert "C compiler" in check.advice


def test_clock_and_user() -> None:
    assert [machine.judge_clock(in_step).verdict for in_step in (True, False, None)] == [Verdict.OK, Verdict.NOTE, Verdict.NOTE]
    assert list(machine.judge_user(0)) == []
    (check,) = machine.judge_user(1000)
    assert (check.verdict, check.advice) == (Verdict.NOTE, "run godwit doctor as root")


def test_this_machine_can_be_looked_at() -> None:
    checks = machine.examine_machine()
    assert {"godwit", "kernel", "/dev/fuse", "fuse", "extension", "clock"} <= {check.subject for check in checks}
