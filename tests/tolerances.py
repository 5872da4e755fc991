"""Every tolerance of the test-suite: quantity -> dtype -> (relative, absolute).

The relative part counts against the largest magnitude in the expected array (its max norm), never entry by
entry: an entry of a gradient that nearly cancels has no relative accuracy. float32 figures are those of NumPy
against float64 on the same logits, with a margin of about three; the loss of a row is only known to about
eps * max|logit|, which is `LOGIT_ROUNDING` times the dtype's eps in front of it.
"""

TOLERANCE = {
    # softmax, log-softmax and losses of rows, on logits of size one
    "rows": {"float64": (1e-14, 1e-14), "float32": (0.0, 3e-6), "float16": (2e-3, 2e-3), "bfloat16": (1e-2, 1e-2)},
    # a mean or sum over rows, of logits of size one
    "loss": {"float64": (1e-12, 1e-14), "float32": (1e-6, 1e-7), "float16": (2e-3, 0.0), "bfloat16": (1e-2, 0.0)},
    # gradient in the logits or in the coefficients, by the size of the largest entry
    "grad": {"float64": (1e-12, 1e-14), "float32": (2e-6, 3e-7), "float16": (2e-3, 2e-3), "bfloat16": (1e-2, 1e-2)},
    # product with the Hessian, against differences of the oracle's gradient along the direction
    "hessian": {"float64": (1e-9, 1e-9), "float32": (3e-6, 3e-7)},
    # analytic gradient against central differences
    "difference": {"float64": (1e-7, 1e-7)},
    # parameters of size one after some tens of steps of an optimizer, given the same gradients
    "steps": {"float64": (0.0, 1e-12), "float32": (0.0, 1e-5)},
    # objective where a fit has converged, between backends
    "optimum": {"float64": (1e-9, 0.0), "float32": (1e-6, 0.0)},
    # probabilities where a fit has converged, between backends
    "probability": {"float64": (0.0, 1e-5), "float32": (0.0, 1e-3)},
}
LOGIT_ROUNDING = 4.0
