"""Tables, figures and cards, printed from result rows."""
