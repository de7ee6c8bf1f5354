"""The ground floor, without models: runs and their files, schemas, config, questions, answers."""
