"""What contradicts or does nothing in a recipe is said before anything is made: key, rule, exit status 2."""

import pytest

GAN = "experiment=digits_gan"
LBFGS = ["experiment=null", "optimizer=lbfgs"]
MISTAKES = [
    (["train.max_time=90"], "train.max_time must be like `1h30m`"),
    (["train.max_time=soon"], "train.max_time must be like `1h30m`"),
    (["train.ema_every=2st"], "train.ema_every has no effect without `train.ema`"),
    (["train.ema=1.0"], "train.ema must be"),
    (["train.early_stop=2", "train.evaluate_every=null"], "train.early_stop has no effect while"),
    (["train.clip_norm=0"], "train.clip_norm must be"),
    (["train.accumulate=0"], "train.accumulate must be at least 1"),
    (["+dataset.evaluate.val._target_=datasets.digits.Digits"], "dataset.evaluate.val must be a name of its own"),
    (["+dataset.evaluate.more._target_=datasets.digits.Digit"], "dataset.evaluate.more._target_"),
    (["device.precision=float16"], "device.precision must be one of"),
    (["device.precision=tf32", "device.type=cpu"], "device.precision cannot be had on cpu: TensorFloat-32"),
    (["device.compile=fast"], "device.compile must be"),
    (["device.compile=reduce-overhead", "train.accumulate=2"], "pytorch#169545"),
    (["device.compile=reduce-overhead", "device.type=cpu"], "device.compile has no effect without a CUDA device"),
    (["device.cuda_graphs=true"], "device.cuda_graphs must be false: not built yet"),
    ([GAN, "train.split_on_oom=true"], "train.split_on_oom has no place where the step asks for updates one by one"),
    ([GAN, "device.parallel=fsdp"], "device.parallel has no place where the step asks for updates one by one"),
    ([GAN, "~optimizer.generator.match"], "optimizer.generator.match must be given"),
    ([GAN, "optimizer.generator.match='.*'"], "`optimizer.generator` comes first for all that it matches"),
    ([GAN, "+optimizer.generator.mach=x"], "did you mean `optimizer.generator.match`"),
    ([GAN, "+optimizer.third=1"], "optimizer.third must be an optimizer"),
    (
        [GAN, "optimizer.generator._target_=torch.optim.LBFGS", "~optimizer.generator.betas"],
        "optimizer.generator._target_ must not stand beside a step with `update`",
    ),
    ([GAN, "optimizer=adam"], "step refuses a batch of two samples"),
    ([*LBFGS, "train.clip_value=1"], "train.clip_value has no place where the optimizer evaluates the loss itself"),
    ([*LBFGS, "device.precision=fp16"], "device.precision has no place where the optimizer evaluates"),
    (["dataset=none", "experiment=null"], "step._target_ needs data"),
    (["dataset=none", "experiment=null", "step=minimise"], "loss._target_ has no effect"),
    (["experiment=minimise", "loader.batch_size=3"], "loader.batch_size has no effect without data"),
    (["experiment=minimise", "model=small_cnn"], "step refuses"),
    (["loss=none"], "loss must be given: the supervised step calls it"),
    (["~dataset.source"], "dataset.train must be given"),
    (["+dataset.steps_per_epoch=3"], "dataset.steps_per_epoch is for a step without data"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_it_is_said_before_anything_is_made(runner, tmp_path, arguments, said):
    ran = runner(*arguments)

    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.status == 2
    assert not (tmp_path / "outputs").exists()


def test_without_a_compiler_compiling_is_refused(runner, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    ran = runner("device.compile=true", "device=cpu")

    assert ran.status == 2
    assert "device.compile cannot be had here: there is no compiler `no-such-compiler`" in ran.err


def test_a_metric_that_nobody_computes_is_one_mistake(runner):
    assert runner("check", "train.objective=val/foo").out.endswith("\n1 mistake.\n")
