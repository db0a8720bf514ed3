//! Unit-scaled rules and layers on the Onesigma graph, constraints and recipes (arXiv 2303.11257).
