# What a guard runs, behind node.sh.
