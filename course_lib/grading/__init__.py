"""The instructor's side: what came in is rebuilt, run, judged outside its kernel, recorded and reported."""

import course_lib.authoring  # noqa: F401  # before anything here imports jsonschema
