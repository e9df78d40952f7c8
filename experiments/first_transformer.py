"""Does a decoder learn English under a hybrid layout, on a laptop, in a minute or two?

Command: python -m experiments run first_transformer (about two minutes on two cores).
Expectation: a fresh model needs 8 bits a byte; the frequencies of letters alone are worth about
4.6. After 150 steps of 16 x 128 bytes it should be past pairs of letters, below 3.6 bits a byte on
pages that it has not read.
"""

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment

LINE_BITS_PER_BYTE = 3.6

experiment = Experiment(
    cases=(Case("transformer", strategy="hybrid", mesh="data=4,model=2", set={"steps": 150}),),
    measures=("inspect",),
    trains=True,
    claims=(
        Claim(
            "a fresh model needs about 8 bits a byte",
            lambda rows: 7.5 < rows[0]["train"]["first_loss"] / 0.6931 < 8.7,
            needs=1,
        ),
        Claim(
            f"the trained one needs fewer than {LINE_BITS_PER_BYTE} on held-out pages",
            lambda rows: rows[0]["train"]["test_bits_per_byte"] < LINE_BITS_PER_BYTE,
            needs=1,
        ),
        Claim(
            "the program's collectives are those that its strategy states",
            lambda rows: rows[0]["inspect"]["ok"],
            needs=1,
        ),
    ),
    columns=("mesh", "train.first_loss", "train.test_bits_per_byte", "train.seconds"),
)
