"""Break the algorithms on purpose, one edit at a time, and see that a test of tests/algo goes red for each.

    python scripts/mutate.py            # all edits
    python scripts/mutate.py sac        # those of one file

An edit that no test notices is printed, and makes the exit status 1. The edits are made in a copy.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

EDITS: dict[str, list[tuple[str, str]]] = {
    "returns": [
        ("next_values.masked_fill(terminated, 0.0) - values", "next_values - values"),
        ("masked_fill_(terminated | truncated, 0.0)", "masked_fill_(terminated, 0.0)"),
        ("masked_fill_(terminated | truncated, 0.0)", "masked_fill_(truncated, 0.0)"),
        ("gamma * gae_lambda)", "gae_lambda)"),
        ("delta = rewards + gamma", "delta = rewards - gamma"),
        ("delta = delta.masked_fill(~mask, 0.0)", "pass"),
        ("ratio.clamp(max=rho_max) * delta, ", "delta, "),
        (", ratio.clamp(max=c_max) * decay", ", decay"),
        ("ratio.clamp(max=rho_max)", "ratio"),
        ("ratio.clamp(max=c_max)", "ratio.clamp(max=rho_max)"),
        ("decay = decay.masked_fill(~mask, 0.0)", "pass"),
        (
            "one_step = rewards + discount * next_values.masked_fill(terminated, 0.0)",
            "one_step = rewards + discount * next_values",
        ),
        ("goes_on = ~(terminated | truncated)[:, :-1]", "goes_on = ~terminated[:, :-1]"),
        ("discount * returns[:, 1:]", "discount * returns[:, :-1]"),
        ("goes_on &= mask[:, 1:]", "pass"),
        ("min(n_step, rewards.shape[1]) - 1", "min(n_step, rewards.shape[1])"),
        ("return (values - mean) / (std + epsilon)", "return values / (std + epsilon)"),
    ],
    "ppo": [
        ("policy_loss = -mean_or_zero", "policy_loss = mean_or_zero"),
        ("torch.min(ratio * advantage", "torch.max(ratio * advantage"),
        ("ratio.clamp(1 - clip_coef, 1 + clip_coef)", "ratio"),
        ('log_prob - steps["log_prob"]', 'steps["log_prob"] - log_prob'),
        ("total - ent_coef * entropy", "total + ent_coef * entropy"),
        ("policy_loss + vf_coef * value_loss", "policy_loss + value_loss"),
        ("0.5 * mean_or_zero(valid(error))", "0.5 * error.mean()"),
        ("old + (value - old)", "old - (value - old)"),
        ("(x / scale for x in", "(x for x in"),
        ("torch.max(error, (moved - target).square())", "torch.min(error, (moved - target).square())"),
        ("return x if mask is None else x[mask]", "return x"),
        ("log_prob_then(agent, taken)", "agent.log_prob(replay(agent, trajectories), taken)"),
        ("advantage + value})", "advantage})"),
        ("mask=None if trajectories.is_full() else steps.mask(),", "mask=None,"),
    ],
    "a2c": [
        ("policy_loss = -mean_or_zero(weight", "policy_loss = mean_or_zero(weight"),
        (
            "outputs, value, next_value = replay_with_values(agent, trajectories)",
            'outputs, value, next_value = replay_with_values(agent, trajectories)\n    value = outputs["value"]',
        ),
        ("- returns) / agent.value_scale(outputs))", "- returns))"),
        ("vf_coef * value_loss - ent_coef * entropy", "vf_coef * value_loss + ent_coef * entropy"),
        (
            'ends = (steps["next/terminated"], steps["next/truncated"])',
            'ends = (steps["next/truncated"], steps["next/terminated"])',
        ),
        ("gae_lambda=gae_lambda, mask=mask, ratio", "gae_lambda=gae_lambda, mask=None, ratio"),
        ("log_prob.detach() - log_prob_then(agent, taken)", "log_prob_then(agent, taken) - log_prob.detach()"),
        (".exp() if vtrace else None", ".exp() if False else None"),
        ("returns = advantage + value", "returns = advantage"),
        ("return x if mask is None else x[mask]", "return x"),
    ],
    "reinforce": [
        ("policy_loss = -(weight", "policy_loss = (weight"),
        ("(returns - known)[mask]", "returns[mask]"),
        ('cut = after.masked_fill(~steps["next/truncated"], 0.0)', "cut = after"),
        ("if baseline:\n        outputs", "if True:\n        outputs"),
        (" / agent.value_scale(outputs))[mask]", ")[mask]"),
        ("gae_lambda=1.0, mask=mask)", "gae_lambda=1.0)"),
        ("agent.value_scale(outputs))[mask]", "agent.value_scale(outputs))"),
        ("policy_loss - ent_coef * entropy", "policy_loss + ent_coef * entropy"),
    ],
    "sequences": [
        ("return over | (left", "return (left"),
        ("over | (left.steps.lengths > 0)", "over | (left.steps.lengths >= 0)"),
    ],
    "dqn": [
        ('steps["target/q"].gather', "chooser.gather"),
        ('replay_next(agent, batch)["q"] if double else steps["target/q"]', 'steps["target/q"]'),
        ('replay_next(agent, batch)["q"] if double else steps["target/q"]', 'replay_next(agent, batch)["q"]'),
        ("@torch.no_grad()\ndef ahead", "def ahead"),
        ("interval - done % interval", "interval"),
        ("also=look_ahead if stands_still_for else None", "also=look_ahead"),
        (
            'steps["next/terminated"], steps["next/truncated"], steps',
            'steps["next/truncated"], steps["next/terminated"], steps',
        ),
        ("n_step=n_step, mask=mask)", "n_step=1, mask=mask)"),
        ("n_step=n_step, mask=mask)", "n_step=n_step, mask=None)"),
        ('each * batch.info["weight"].unsqueeze(1)', "each"),
        ("each.mean() if mask is None else mean_of_valid(each, mask)", "each.mean()"),
        ("td_error = wanted - q.detach()", "td_error = q.detach() - wanted"),
        ("(difference.detach() < 0)", "(difference.detach() > 0)"),
        ("+ 0.5).unsqueeze(-1) / count", ").unsqueeze(-1) / count"),
        (".mean(-1).sum(-1)", ".sum(-1).mean(-1)"),
        ("0.9 * error.amax(1) + 0.1", "0.1 * error.amax(1) + 0.9"),
    ],
    "sac": [
        (".amin(0)\n        given", ".amax(0)\n        given"),
        ("next_q - alpha * next_log_prob", "next_q + alpha * next_log_prob"),
        (
            'steps["next/terminated"], steps["next/truncated"], steps',
            'steps["next/truncated"], steps["next/terminated"], steps',
        ),
        ("alpha * log_prob - agent.critics", "-alpha * log_prob - agent.critics"),
        ("action, frozen=True)", "action)"),
        (
            "q(features.detach(), action, frozen=True).amin(0)",
            "q(features.detach(), action.detach(), frozen=True).amin(0)",
        ),
        ("frozen=True).amin(0)", "frozen=True)[0]"),
        ("agent.log_temperature.exp().detach()", "agent.log_temperature.exp()"),
        ("-agent.log_temperature * mean(", "agent.log_temperature * mean("),
        ("surprise = log_prob.detach()", "surprise = log_prob"),
        ('distribution.from_space(steps["agent/action"])', 'steps["agent/action"]'),
        ("0.5 * mean(", "mean("),
        ("return x.mean() if mask is None else mean_of_valid(x, mask)", "return x.mean()"),
        ("next_q = target.q(", "next_q = agent.critics.q("),
    ],
    "hdqn": [
        ('{"agent/action": choices.steps[OPTION]}', '{"agent/action": choices.steps["agent/action"]}'),
        ('steps.steps["next/terminated"] | achieved', 'steps.steps["next/terminated"]'),
        ('steps.steps["next/terminated"] | achieved', "achieved"),
        ("target.worker", "agent.worker"),
        ("target.manager", "agent.manager"),
    ],
    "diayn": [
        ("log_prob.detach() + math.log", "log_prob.detach() - math.log"),
        ("logits.argmax(-1) == skill", "logits.argmin(-1) == skill"),
        ('terms["loss/total"] - log_prob.mean()', 'terms["loss/total"] + log_prob.mean()'),
        ('.group("next"))', '.group("env"))'),
    ],
}


def survives(name: str, old: str, new: str) -> bool:
    """Return whether all tests of tests/algo pass with this edit of rlx/algo/NAME.py."""
    with tempfile.TemporaryDirectory() as scratch:
        for part in ("rlx", "tests", "conf"):
            shutil.copytree(ROOT / part, Path(scratch, part), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", scratch)
        file = Path(scratch, "rlx", "algo", f"{name}.py")
        text = file.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise SystemExit(f"{name}: {old!r} is there {text.count(old)} times, expected once: mend the list of edits")
        file.write_text(text.replace(old, new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/algo", "-p", "no:cacheprovider"]
        found = subprocess.run(command, cwd=scratch, env={"PYTHONPATH": scratch, "PATH": ""}, capture_output=True)
        if found.returncode not in (0, 1):  # no test ran: the edit proves nothing
            raise SystemExit(f"{name}: {old!r}: {found.stdout.decode()[-2000:]}")
        return found.returncode == 0


def main() -> None:
    """Make each edit in turn, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(EDITS)}; none: all")
    chosen = parser.parse_args().files or list(EDITS)
    for name in chosen:
        if name not in EDITS:
            parser.error(f"there are no edits of '{name}'; expected some of {', '.join(EDITS)}")
    edits = [(name, *edit) for name in chosen for edit in EDITS[name]]
    started, survivors = time.perf_counter(), 0
    with ThreadPoolExecutor(2) as pool:
        for (name, old, new), unseen in zip(edits, pool.map(lambda edit: survives(*edit), edits), strict=True):
            survivors += unseen
            print(f"{'NOT SEEN' if unseen else 'caught  '} {name}: {old!r} -> {new!r}", flush=True)
    print(f"{len(edits)} edits, {survivors} not seen by any test, {time.perf_counter() - started:.0f} s")
    raise SystemExit(1 if survivors else 0)


if __name__ == "__main__":
    main()
