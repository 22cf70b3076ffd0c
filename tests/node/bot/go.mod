module botplane.io/tests/bot

go 1.26.0
