"""An algorithm that fills its replay buffer itself, before the run takes it up, and learns nothing."""

from rlx.agent import AgentMaker
from rlx.batcher import BatcherMaker
from rlx.data import ReplayBuffer
from rlx.run import Run


def train(run: Run, make_agent: AgentMaker, make_batcher: BatcherMaker, *, num_steps: int) -> None:
    """Collect, and add to a buffer that holds something before the first iteration."""
    with make_batcher(num_steps=num_steps) as batcher:
        agent = make_agent(batcher.specs)
        batcher.publish(agent)
        buffer = ReplayBuffer(batcher.specs, capacity=1000, num_envs=batcher.num_envs)
        buffer.add(batcher.collect())
        run.track(agent=agent, batcher=batcher, buffer=buffer)
        while run.running():
            run.log({"buffer": len(buffer)}, env_steps=batcher.collect().num_steps)
