# nothing was done
