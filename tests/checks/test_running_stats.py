"""Problem set 2: what every topic is tested for, and what is special to a layer."""

from tests.checks.every_topic import *  # noqa: F403  the tests
from tests.right_answers.running_stats import RIGHT

TOPIC = "running_stats"
CLAUSES = []
