module botplane.io/controlplane/pause

go 1.26.0
