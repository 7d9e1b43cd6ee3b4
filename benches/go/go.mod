module dhaga/benches

go 1.25
