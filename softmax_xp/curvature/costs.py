"""What estimates of the curvature cost, and when they pay: every number that was tuned, with its unit and evidence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostModel:
    """The cost of an estimate, in multiplications of a large product in float32.

    Measured on two cores of an Intel Xeon with AVX-512 where nothing else is said.

    Attributes
    ----------
    min_rows, rows_per_feature : int
        A sample has at least `min_rows` rows, and `rows_per_feature` for each feature. A guess.
    free : float
        Work up to this is not counted. 1e7 takes some 0.1 ms.
    free_whole : float
        The same for the whole Hessian, which makes the gap certain. 5e8 takes some 20 ms.
    stream : float
        Coefficients per feature for which reading X takes as long as multiplying it.
    logit : float
        Work of the row pass per logit: 200 to 330.
    gather : float
        Work of gathering, scaling and converting one feature of a sampled row.
    draw : float
        Work per logit of the twenty array operations that sample the rows.
    gram, inverse, eigen : float
        How much longer multiplications take in a Gram matrix, in an inverse (per D^3), and in eigenvectors with what is
        made of them (per n^3).
    cholesky : float
        Work of a Cholesky factor in float64 per n^3; half of it in float32.
    solve : float
        Work of a solution with a factor per n^2: reading the factor takes the time.
    solves : float
        Solutions with a factor before another one is made. A guess.
    likely_pairs : float
        Pairs of classes that are likely for a row, of many. A guess.
    small_on_gpu, host_on_gpu : float
        On a GPU: how much longer the small products of an inverse take, and what the host does. From data sheets (50e12
        multiplications a second on a GPU) and a guess (3e11 on a host); not measured.
    step_on_gpu : float
        On a GPU: multiplications in the time in which a step launches its kernels (102 by a count, and four waits for a
        number: 0.6 ms, a guess); not measured.
    """

    min_rows: int = 2048
    rows_per_feature: int = 8
    free: float = 1e7
    free_whole: float = 5e8
    stream: float = 25.0
    logit: float = 200.0
    gather: float = 200.0
    draw: float = 6000.0
    gram: float = 1.5
    inverse: float = 3.0
    eigen: float = 30.0
    cholesky: float = 0.12
    solve: float = 8.0
    solves: float = 30.0
    likely_pairs: float = 10.0
    small_on_gpu: float = 30.0
    host_on_gpu: float = 160.0
    step_on_gpu: float = 3e10


@dataclass(frozen=True)
class Timetable:
    """When an estimate is made. Costs are in evaluations of value and gradient.

    Attributes
    ----------
    first_estimate : float
        What the first estimate may cost, before anything is known of the problem. Without one the last check of the gap
        takes 50 products, and raw features take hundreds of steps.
    warm_estimate : float
        The same for a start near the optimum. A guess.
    newton_estimate : float
        What an estimate for one step of Newton's method may cost. A step takes up to a hundred products. A guess.
    exact_check : float
        What the whole Hessian may cost for the last Newton step of a solve. Without it that takes a dozen products or
        more.
    patience : int
        Steps after which progress is judged first, if the features are uncorrelated. A guess.
    first_look : int
        Steps after which progress is judged first, otherwise. A guess.
    look_growth : float
        By this factor the number of steps until progress is judged grows with each estimate. A guess.
    settling : int
        First steps with a new estimate, whose gains are larger than those of later ones, and are not counted.
    most_to_come, most_to_come_of_whole : float
        The most steps that are foreseen if gains hardly fall, for the whole Hessian and the other estimates. It helps
        where they do not. Guesses.
    earned : float
        Share of an estimate's cost that as many steps have to earn first. A guess.
    whole_age : float
        A whole Hessian is made anew after as many steps as this share of its cost. On features of low rank with 99
        classes shares of 0.65 to 1.1 took the same time, and 0.3 took a fifth more.
    """

    first_estimate: float = 200.0
    warm_estimate: float = 50.0
    newton_estimate: float = 50.0
    exact_check: float = 4.0
    patience: int = 32
    first_look: int = 8
    look_growth: float = 1.5
    settling: int = 3
    most_to_come: float = 200.0
    most_to_come_of_whole: float = 600.0
    earned: float = 0.1
    whole_age: float = 0.8


COSTS, TIMES = CostModel(), Timetable()
