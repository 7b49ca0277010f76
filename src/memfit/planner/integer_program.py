"""A mixed-integer program, and its solution by HiGHS.

minimise  sum of costs * columns    where  least <= sum of factors * columns <= most  for each row
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate, chain

__all__ = ["IntegerProgram", "Term"]

Term = tuple[int, float]  # a column and its factor


class IntegerProgram:
    def __init__(self, *, enough: float) -> None:
        """The search ends where the best found is within the share `enough` of the best there is."""
        self._enough = enough
        self.costs: list[float] = []  # of each column
        self.limits: list[float] = []  # of each column; all start at 0
        self.integral: list[int] = []  # 1 for a column of whole numbers
        self.rows: list[tuple[dict[int, float], float, float]] = []  # factors of columns, least, most

    def column(self, cost: float, limit: float, *, integral: bool = True) -> int:
        self.costs.append(cost)
        self.limits.append(limit)
        self.integral.append(integral)
        return len(self.costs) - 1

    def row(self, terms: Iterable[Term], least: float, most: float) -> None:
        factors: dict[int, float] = defaultdict(int)
        for column, factor in terms:
            factors[column] += factor
        self.rows.append((factors, least, most))

    def minimise(
        self, seconds_limit: float = math.inf, *, whole: bool = True, priced: bool = True
    ) -> tuple[list[float] | None, float]:
        """The best columns found, and a cost that none is below: infinite if nothing fits.

        Without `whole` numbers it bounds the problem; if not `priced`, the first that fits is the best.
        """
        import highspy  # 0.07 s

        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, value in {
            "output_flag": False,
            "threads": 1,
            "time_limit": max(0.0, seconds_limit),
            "mip_rel_gap": self._enough,
            "mip_feasibility_tolerance": 1e-9,
            "mip_pool_age_limit": 2,  # forgets cuts early, which finds good placements sooner
        }.items():
            solver.setOptionValue(name, value)
        width = len(self.costs)
        factors = [list(row.values()) for row, _, _ in self.rows]
        solver.passModel(
            width,
            len(self.rows),
            sum(map(len, factors)),
            int(highspy.MatrixFormat.kRowwise),
            int(highspy.ObjSense.kMinimize),
            0.0,
            self.costs if priced else [0.0] * width,
            [0.0] * width,
            self.limits,
            [least for _, least, _ in self.rows],
            [most for _, _, most in self.rows],
            list(accumulate(map(len, factors[:-1]), initial=0)),
            list(chain.from_iterable(row for row, _, _ in self.rows)),
            list(chain.from_iterable(factors)),
            self.integral if whole else [0] * width,
        )
        solver.run()
        status, info = solver.getModelStatus(), solver.getInfo()
        # Columns are bounded, so the second of these means the first.
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return None, math.inf
        found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        bound = info.objective_function_value if status == highspy.HighsModelStatus.kOptimal else 0.0
        if whole:  # HiGHS leaves out what beats the best found by less than the share it may end at
            bound = min(info.mip_dual_bound, info.objective_function_value * (1 - self._enough))
        return list(solver.getSolution().col_value) if found else None, bound
