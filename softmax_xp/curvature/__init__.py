"""The curvature of an objective: estimates of its inverse Hessian, what they cost, and when to make them.

With A the features and a column of ones for the intercept, the Hessian of the mean cross-entropy is

    H = mean_i S_i (x) a_i a_i',    S_i = diag(p_i) - p_i p_i'

where p_i are the probabilities of row i. For another loss the positive part of the Hessian is the same with the weight
T_i of each row: see `losses`. The inverse is estimated in four ways, from the coarse to the fine:

- `bound`: 1/2 I (x) A'A / n, which lies above H everywhere (Boehning, 1992, doi:10.1007/BF00048682; 1/4 A'A / n for
  two classes). It knows the scales, means and correlations of the features.
- `kronecker`: mean_i S_i (x) mean_i t_i a_i a_i', where t_i is the share of row i in the trace of the first factor.
  It also knows the classes, and which rows still count (Martens and Grosse, 2015, arXiv:1503.05671).
- `class_blocks`: in the basis of the eigenvectors q_k of mean_i S_i, the blocks mean_i (q_k' S_i q_k) a_i a_i' on the
  diagonal. In that basis the weights of every other block sum to zero, so that little is lost without them.
- `whole`: H itself, by its Cholesky factor. It is made where K (D + 1) is small. It alone knows how rows between two
  classes couple them, which is what counts where nearly all rows are classified right and the penalty is weak.

The first three are made from a sample of the rows, but for their diagonal: a feature that few rows have may be zero in
all of a sample. They are inverted in float64, scaled to a unit diagonal first, so that the units of the features do not
matter: on a GPU there, but for eigenvectors and for the inner products of few rows, which the host makes. The whole
Hessian is made by the host alone, for rows that are there. Gram matrices are kept without the penalty, which is added
where they are inverted.

Each file adds a layer to one class: `sampling`, `estimates`, `whole`, and `timetable`, whose `Curvature` solvers use.
"""
