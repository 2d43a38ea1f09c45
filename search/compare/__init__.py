"""The comparison of methods: what was measured, and its report."""
