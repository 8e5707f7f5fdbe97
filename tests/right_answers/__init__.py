"""Right answers, written as differently as students write: all of them have to get full marks, and no hint."""
