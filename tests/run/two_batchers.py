"""An algorithm that collects with two batchers, on environment seeds of their own, and learns nothing."""

from rlx.agent import AgentMaker
from rlx.batcher import Batcher
from rlx.run import Run
from rlx.seeding import derive


def train(run: Run, make_agent: AgentMaker, make_batcher: type[Batcher], *, num_steps: int, publish: bool) -> None:
    """Log what both saw; the second one has weights before the run takes it up where `publish`."""
    seed = derive(run.seed, "second")
    with make_batcher(num_steps=num_steps) as batcher, make_batcher(num_steps=num_steps, seed=seed) as second:
        agent = make_agent(batcher.specs)
        if publish:
            second.publish(agent)
        run.track(agent=agent, batcher=batcher, second=second)
        while run.running():
            seen, other = (each.collect() for each in (batcher, second))
            found = {"first": seen.steps["env/obs"].sum(), "second": other.steps["env/obs"].sum()}
            for each in (batcher, second):
                each.publish(agent)
            run.log(found, env_steps=seen.num_steps + other.num_steps)
