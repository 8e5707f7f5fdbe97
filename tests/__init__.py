import course_lib.authoring  # noqa: F401  # before anything reads notebooks: it keeps jsonschema's start short
