module dhaga/benches

go 1.24
