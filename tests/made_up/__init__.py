"""Made-up data files in the formats of real data sets, for the tests of readers, evaluation and batch prediction."""
