"""nbgrader's step from answers to stubs, and what is handed out where a student repairs instead of writes."""

from nbgrader.converters import GenerateAssignment
from nbgrader.preprocessors import ClearSolutions

__all__ = ["GENERATE", "ClearAnswers"]


class ClearAnswers(ClearSolutions):
    """Bodies become stubs; a cell whose metadata hold the code to be handed out becomes that code."""

    def preprocess_cell(self, cell, resources, cell_index):
        code = cell.metadata.get("course", {}).pop("handed_out", None)
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if code is not None:
            cell.source = code
        return cell, resources


#: nbgrader's own steps, with that one in its place.
GENERATE = [ClearAnswers if step is ClearSolutions else step for step in GenerateAssignment.preprocessors.default()]
