"""The paper's numbers and claims, and a folder beside them. Draws nothing."""
