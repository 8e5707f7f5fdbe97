"""The instructor's side: what came in is rebuilt, run, judged outside its kernel, recorded and reported."""
