"""The bottom layer, which loads no models: runs and their files, schemas, config, questions, answers."""
