"""A nested folder, which holds every width as bit planes: its layout in `folder`, its writer, and its readers.

Layers can stay packed in memory; files may lie on this machine or on a hub (`places`).
"""
