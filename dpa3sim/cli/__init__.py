"""The command line: reads files, runs protocols, writes run directories. No physics here."""
