"""The frame around every page: header, navigation, toolbar, live updates."""
