"""Chat models that judge texts: what they are asked, how their answers are read, and the file of their verdicts."""
