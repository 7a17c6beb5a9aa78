"""The frame around every page: header, navigation, live updates."""
