"""The settings of CM-ASD that suit a corpus, a pair and a machine."""
