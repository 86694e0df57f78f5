"""The report: what was measured, for a person (HTML, Markdown), a program (JSON) and CI (JUnit)."""
