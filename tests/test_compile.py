"""--compile trains as the plain network does."""

import shutil

import pytest

from snowmelt.tracking import read_metrics


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a compiler")
def test_compile(train, tiny_unet, tmp_path):
    import json

    plain = tmp_path / "config.json"  # without dropout, whose random numbers a compiled network draws otherwise
    plain.write_text(json.dumps(json.loads(tiny_unet.read_text()) | {"dropout": 0.0}))
    options = {"model_config_name_or_path": plain, "learning_rate": 1e-3, "lr_warmup_steps": 0, "max_train_steps": 3}
    eager, compiled = (train(tmp_path / str(c), **options, compile=c) for c in (False, True))
    for line, other in zip(read_metrics(eager), read_metrics(compiled), strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-3)
        assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-2)
