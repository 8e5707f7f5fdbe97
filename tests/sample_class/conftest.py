"""The students' files are blocks of cells, not modules: nothing is collected here."""

collect_ignore_glob = ["ps*"]
