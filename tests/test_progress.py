import pytest

from vgg16_xray import progress as module
from vgg16_xray.progress import progress


def test_a_pipe_sees_a_first_line_soon_and_then_one_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "silent", False)
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    seen = []
    with progress("decode films", total=100) as bar:
        for second in range(1, 40):
            now = float(second)
            bar.advance()
            if capsys.readouterr().err:
                seen.append(second)
    assert seen == [3, 18, 33]
