"""How a policy learns what share of drafted tokens is accepted: each kind is a `Calibration`, or begins from it."""

from cmasd.policies.acceptance import Calibration
from cmasd.policies.estimators.bayesian import BayesianCalibration
from cmasd.policies.estimators.logistic import SignalsCalibration

__all__ = ["ESTIMATORS", "BayesianCalibration", "Calibration", "SignalsCalibration"]

ESTIMATORS: dict[str, type[Calibration]] = {
    "logistic": Calibration,
    "signals": SignalsCalibration,
    "bayesian": BayesianCalibration,
}
"""By `policy.estimator`."""
